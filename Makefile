# The two commands of README: `make demo` and `make test`. Both prepare a bare Debian 12 first.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# nft writes the nftables mode, iptables the iptables and ipvs modes; python3-venv makes the virtual environment;
# mmdebstrap makes the fresh root in which the image's steps are tried; chromium shows the status page to its tests;
# user-mode-linux is the kernel in which ipvs mode is tried, kmod loads its modules, and with ipvsadm, ipset and procps
# the tests look at and damage what that mode writes; python3-bpfcc (which is not PyPI's bcc) compiles the programs of
# ebpf mode, with the headers of linux-libc-dev: so the virtual environment sees Debian's packages. iperf3 and wrk make
# the traffic of `pyproxy bench throughput`.
DEBIAN := nftables python3-venv iptables mmdebstrap chromium chromium-driver user-mode-linux kmod ipvsadm ipset procps \
	python3-bpfcc linux-libc-dev iperf3 wrk
# nginx answers wrk. Installed, Debian's package would open port 80 and start with the machine: the program is enough.
NGINX = { apt-get download -qq nginx 2>/dev/null || { apt-get update -qq && apt-get download -qq nginx; }; } && \
	dpkg-deb --fsys-tarfile nginx_*.deb | tar -xO ./usr/sbin/nginx >bin/nginx && chmod +x bin/nginx && rm nginx_*.deb
# No other run switches between iptables and userspace mode.
SWITCH := tests/conformance/test_switch.py
# Of the modes whose whole suites would make `make test` too long: see broad.
EACH := tests/conformance/test_reachability.py tests/conformance/test_changes.py
# It makes a whole Debian first: see broad, too.
IMAGE := tests/faults/test_image.py
# What runs beside something else, and says in one piece what it has to say.
define meanwhile
@mkdir -p .cache && echo "meanwhile: $@, see .cache/$@.log"
@{ $(1); } >.cache/$@.log 2>&1; status=$$?; cat .cache/$@.log; exit $$status
endef
LOCK := --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links \
	--no-emit-trusted-host

.PHONY: demo test here suites in-uml soak test-kernels broad check unit conformance faults screenshot lock clean

demo: $(READY)
	$(BIN)/pyproxy demo
	$(BIN)/python -m tests.kernels uml --timeout 600 -- pyproxy demo --mode ipvs

# Three at once, since each waits now and then for time to pass.
test: check
	$(MAKE) --no-print-directory --jobs=3 here suites in-uml

here: $(READY)
	$(BIN)/pytest tests/faults --ignore $(IMAGE)

suites: $(READY)
	$(call meanwhile,$(BIN)/pytest tests/unit tests/conformance && $(BIN)/pytest tests/conformance --mode ebpf && \
		$(BIN)/pytest $(EACH) --mode iptables --iptables legacy && $(BIN)/pytest $(EACH) $(SWITCH) --mode userspace)

# tests/ipvs comes first, since it takes IPVS away for a while, which no cluster may use then.
in-uml: $(READY)
	$(call meanwhile,$(BIN)/python -m tests.kernels uml -- pytest tests/ipvs tests/conformance --mode ipvs --iptables legacy)

# 20,000 short connections and 200 long ones across 300 changes of endpoints: make soak MODE=nftables
soak: MODE ?= ebpf
soak: $(READY)
	$(BIN)/pytest tests/soak --mode $(MODE)

# The conformance suite of every mode in every kernel, and what came of it as a table.
test-kernels: $(READY)
	@dpkg-query -W qemu-system-x86 >/dev/null 2>&1 || apt-get install -y -qq --no-install-recommends qemu-system-x86
	$(BIN)/python -m tests.kernels matrix --write docs/KERNELS.md

# What `make test` leaves out, to stay short: to be run before an issue is closed.
broad: $(READY)
	$(BIN)/pytest tests/conformance --mode iptables --iptables legacy
	$(BIN)/pytest tests/conformance --mode iptables --iptables nft
	$(BIN)/pytest tests/conformance --mode userspace
	$(BIN)/pytest $(IMAGE)
	PYPROXY_MIB=1024 $(BIN)/pytest tests/faults/test_userspace.py -k every_byte

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit conformance faults: $(READY)
	$(BIN)/pytest tests/$@

screenshot: $(READY)
	PYPROXY_PICTURE=docs/status-page.png $(BIN)/pytest tests/faults/test_status_page.py -k picture

$(READY): pyproject.toml requirements.lock
	@dpkg-query -W $(DEBIAN) >/dev/null 2>&1 || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN); }
	$(PYTHON) -m venv --clear --system-site-packages $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@test -x /usr/sbin/nginx || { cd $(VENV) && $(NGINX); }
	@touch $@

# Pins every dependency with its hashes, from the reasons in pyproject.toml; for the images what runs and what builds.
lock:
	$(BIN)/pip-compile -q $(LOCK) --extra bench --extra dev -o requirements.lock pyproject.toml
	$(BIN)/pip-compile -q $(LOCK) -c requirements.lock -o deploy/requirements.lock pyproject.toml
	$(BIN)/pip-compile -q $(LOCK) -c requirements.lock --extra bench -o deploy/bench.lock pyproject.toml
	$(BIN)/pip-compile -q $(LOCK) -c requirements.lock --only-build-deps --build-deps-for wheel \
		-o deploy/build.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
