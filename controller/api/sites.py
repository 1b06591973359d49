"""Sites: list, make, change policy, isolate, release."""

from __future__ import annotations

from contract.messages import Name
from controller.api.route import AnyRoute, Call, Nothing, Paging, Reason, Reasoned, Route, shown_whole
from controller.fleet import editing
from controller.policy import SitePolicy
from controller.records import Change, Page, SiteView, Strict


class NewSite(Strict, frozen=True, kw_only=True):
    """A site to be."""

    site: Name
    policy: SitePolicy = SitePolicy()


class NewPolicy(Strict, frozen=True, kw_only=True):
    """The whole policy, which replaces the one before."""

    policy: SitePolicy
    reason: Reason


async def list_sites(call: Call[Paging, Nothing]) -> Page[SiteView]:
    """Sites by name."""
    return await call.services.fleet.list_sites(
        scope=call.scope, after=call.query.cursor, limit=call.query.limit
    )


async def get_site(call: Call[Nothing, Nothing]) -> SiteView:
    """One site."""
    return await call.services.fleet.site(call.name("site"))


async def create_site(call: Call[Nothing, NewSite]) -> SiteView:
    """Make a site."""
    return await call.services.fleet.create_site(
        call.body.site, call.body.policy, actor=call.person.name, now=call.now
    )


async def set_policy(call: Call[Nothing, NewPolicy]) -> SiteView:
    """Replace a site's policy."""
    return await call.services.fleet.set_policy(
        call.name("site"), call.body.policy, actor=call.person.name, reason=call.body.reason, now=call.now
    )


async def isolate_site(call: Call[Nothing, Reasoned]) -> Change:
    """Place a hold on a whole site and tell every node at once."""
    change = await call.services.fleet.isolate_site(
        call.name("site"), actor=call.person.name, reason=call.body.reason, now=call.now
    )
    await call.services.tell(change, call.now)
    return change


async def release_site(call: Call[Nothing, Reasoned]) -> Change:
    """Release the hold on a site and tell every node at once."""
    change = await call.services.fleet.release_site(
        call.name("site"), actor=call.person.name, reason=call.body.reason, now=call.now
    )
    await call.services.tell(change, call.now)
    return change


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/sites",
        needs="fleet.read",
        about="listed",
        summary="List sites",
        handler=list_sites,
        query=Paging,
        body=Nothing,
        reply=Page[SiteView],
    ),
    Route(
        method="POST",
        path="/sites",
        needs="site.make",
        about="fleet",
        summary="Make a site",
        handler=create_site,
        query=Nothing,
        body=NewSite,
        reply=SiteView,
        status=201,
    ),
    Route(
        method="GET",
        path="/sites/{site}",
        needs="fleet.read",
        about="site",
        summary="Look at one site",
        handler=get_site,
        query=Nothing,
        body=Nothing,
        reply=SiteView,
    ),
    shown_whole("/sites/{site}/policy", editing.policy, editing.Policy, "A site's policy", about="site"),
    Route(
        method="PUT",
        path="/sites/{site}/policy",
        needs="site.policy",
        about="site",
        summary="Replace a site's policy",
        handler=set_policy,
        query=Nothing,
        body=NewPolicy,
        reply=SiteView,
        whole=editing.policy,
        match="must",
    ),
    Route(
        method="POST",
        path="/sites/{site}/isolate",
        needs="isolation.act",
        about="site",
        summary="Isolate a whole site",
        handler=isolate_site,
        query=Nothing,
        body=Reasoned,
        reply=Change,
    ),
    Route(
        method="POST",
        path="/sites/{site}/release",
        needs="isolation.act",
        about="site",
        summary="Release a site",
        handler=release_site,
        query=Nothing,
        body=Reasoned,
        reply=Change,
    ),
)
