"""What benches claim of themselves, without running them."""

from __future__ import annotations

import pytest

from bench import atrest


def test_the_agent_that_is_measured_at_rest_has_every_section() -> None:
    learned = [f"[{name}]" for name in atrest.LEARNED]
    atrest.check_whole("\n".join([*learned, atrest.OTHERS]))
    with pytest.raises(AssertionError, match=f"no section {atrest.LEARNED[0]}"):
        atrest.check_whole("\n".join([*learned[1:], atrest.OTHERS]))
