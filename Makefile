# Every target works as the first command after clone, on Debian 12 and 13, as root.
.PHONY: setup demo test check guards bench fuzz contract chaos lab lab-smoke packages packages-twice packages-foreign packages-try repo image lock clean
V := .venv/bin
LAB := qemu-system-x86 ovmf mtools fdisk

setup:
	@packaging/setup/system-packages
	@packaging/setup/python-environment

demo: setup      ## two sites on one machine, the whole promise; KEEP=1 leaves it running
	@$(V)/python -m tests.flow.demo $(if $(KEEP),--keep)

test: setup      ## all tests, in two processes; ARGS="tests/agent -k usb" runs some, in one
	@packaging/setup/system-packages $(LAB) || echo "ringfence: without these the lab's smoke run is skipped"
	@$(V)/python -m pytest $(or $(ARGS),-n 2 --dist loadfile)

check: setup     ## style, strict types, import arrows
	@$(V)/ruff check .
	@$(V)/ruff format --check .
	@$(V)/mypy
	@$(V)/lint-imports

guards: setup    ## take every guard out, one at a time, and see its test fail
	@$(V)/python -m tests.guards $(ARGS)

bench: setup     ## figures beside their references, to bench/results.json
	@$(V)/python -m bench $(ARGS)

chaos: setup     ## two controllers, 500 nodes, five minutes of killing: controllers, database, connections
	@RINGFENCE_CHAOS_S=$(or $(S),300) RINGFENCE_CHAOS_NODES=$(or $(NODES),500) \
	    $(V)/python -m pytest -s tests/controller/test_chaos.py

lab: setup       ## a Debian guest with a measured boot: dist/*.deb installed in it and looked at; ARGS="--rest 2 --record DIR --keep"
	@packaging/setup/system-packages $(LAB)
	@ls dist/ringfence-agent_*.deb >/dev/null 2>&1 || $(MAKE) --no-print-directory packages
	@$(V)/python -m tests.lab $(ARGS)

lab-smoke:       ## the few rows of it that are in `make test`: under eight minutes
	@$(MAKE) --no-print-directory lab ARGS="--smoke $(ARGS)"

fuzz: setup      ## every parser, guided by coverage; ARGS="NAME --inputs N --seconds S"
	@$(V)/pip install -qq --require-hashes --no-deps --upgrade --target build/fuzz -r packaging/setup/fuzz.txt
	@nice -n 15 $(V)/python -m tests.fuzz $(ARGS)

contract: setup  ## the admin API against its own document, at length; N=200 requests of each kind, SEED=1
	@RINGFENCE_SCHEMATHESIS_EXAMPLES=$(or $(N),200) RINGFENCE_SCHEMATHESIS_SEED=$(or $(SEED),1) \
	    $(V)/python -m pytest tests/controller/test_schemathesis.py

packages: setup  ## dist/*.deb and dist/*.rpm; ARGS="--only ringfence-agent"
	@$(V)/pip install -qq --require-hashes --no-deps --upgrade --target build/package-tools -r packaging/setup/packages.txt
	@PYTHONPATH=build/package-tools nice -n 15 $(V)/python packaging/os/build.py $(ARGS)

packages-twice: setup  ## build two clones and compare the bytes; ARGS="--only ringfence"
	@nice -n 15 $(V)/python packaging/os/twice.py $(ARGS)

packages-foreign: setup  ## dist/ARCH/*: packages for another processor, under emulation; ARCH=arm64 ARGS="--only ringfence-agent"
	@packaging/setup/system-packages mmdebstrap qemu-user-static binfmt-support arch-test
	@nice -n 15 $(V)/python packaging/os/foreign.py --architecture $(or $(ARCH),arm64) $(ARGS)

packages-try: setup  ## lint, and install, upgrade, break, remove in clean Debian 12 and 13 roots; ARGS="--base 12=FOLDER"
	@packaging/setup/system-packages lintian rpmlint systemd-container createrepo-c gpg
	@nice -n 15 $(V)/python packaging/os/roots.py $(ARGS)

repo: setup      ## dist/repo: signed apt and dnf repository of dist/; KEYS=FOLDER is the owner's, else throw-away keys
	@packaging/setup/system-packages createrepo-c gpg
	@$(V)/python packaging/os/repository.py $(if $(KEYS),--keys $(KEYS)) $(ARGS)

image: setup     ## the controller's OCI image from dist/ringfence-controller_*.deb, by podman
	@nice -n 15 packaging/oci/build

lock:            ## pin versions and hashes anew (needs uv)
	@for list in build requirements develop fuzz packages; do \
	    uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 \
	        --no-emit-index-url -o packaging/setup/$$list.txt packaging/setup/$$list.in; done

clean:
	rm -rf .venv build dist bench/results.json
