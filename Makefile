# What people run. `make run` and `make test` are the README's two commands; both set up what they need.
.DEFAULT_GOAL := help
.PHONY: help run test lint bench

help:
	@echo "make run    mount agentfs (root: /agentmem, others: ./agentmem) and take a short tour"
	@echo "make test   set up and run the tests"
	@echo "make lint   ruff, mypy, import-linter, clang-format"
	@echo "make bench  measure what the README says"

run:
	scripts/setup
	.venv/bin/python examples/tour.py

test:
	scripts/setup test
	.venv/bin/pytest -n auto --dist loadfile

lint:
	scripts/setup test lint
	scripts/lint

bench:
	scripts/setup test
	BENCH_AGENTFS=$(CURDIR)/.venv/bin/agentfs .venv/bin/python -m bench

# What engineers run, with PYTHON naming one that has meson.
PYTHON ?= python3
MESON ?= $(PYTHON) -m mesonbuild.mesonmain

.PHONY: build-inplace native-test

# Makes agentfs.chunks._native, agentfs.fuse._relay and agentfs.index._pages importable from this tree.
build-inplace:
	test -f build/build.ninja || $(MESON) setup build --buildtype=release -Dwerror=true
	$(MESON) compile -C build
	install -m 755 build/native/_native.*.so agentfs/chunks/
	install -m 755 build/native/_relay.*.so agentfs/fuse/
	install -m 755 build/native/_pages.*.so agentfs/index/

# The C tests three times: with asserts of our own only, under ASan and UBSan, under TSan; then the fuzz
# targets for FUZZ_SECONDS (the relay's: FUZZ_RELAY_SECONDS each) from their committed corpora.
FUZZ_SECONDS ?= 25
FUZZ_RELAY_SECONDS ?= 15
NATIVE_SETUP = --reconfigure -Dwerror=true -Dnative_tests=true
native-test:
	$(MESON) setup build-native $(NATIVE_SETUP) --buildtype=release
	$(MESON) test -C build-native --suite native
	$(MESON) setup build-asan $(NATIVE_SETUP) --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
	$(MESON) test -C build-asan --suite native
	$(MESON) setup build-tsan $(NATIVE_SETUP) --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
	$(MESON) test -C build-tsan --suite native
	@if command -v clang >/dev/null; then $(MAKE) native-fuzz; \
	else echo "native-fuzz SKIPPED: clang is not installed"; fi

.PHONY: native-fuzz
native-fuzz:
	CC=clang $(MESON) setup build-fuzz --reconfigure -Dfuzz=true --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
	$(MESON) compile -C build-fuzz fuzz_segment fuzz_columns fuzz_log fuzz_relay_request fuzz_relay_reply
	mkdir -p build-fuzz/corpus build-fuzz/columns build-fuzz/log build-fuzz/relay_request build-fuzz/relay_reply
	build-fuzz/native/fuzz_segment -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=1 -verbosity=0 \
	  -artifact_prefix=build-fuzz/ build-fuzz/corpus native/fuzz/corpus/segment
	build-fuzz/native/fuzz_columns -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -print_final_stats=1 -verbosity=0 \
	  -artifact_prefix=build-fuzz/ build-fuzz/columns native/fuzz/corpus/columns
	build-fuzz/native/fuzz_log -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -print_final_stats=1 -verbosity=0 \
	  -artifact_prefix=build-fuzz/ build-fuzz/log native/fuzz/corpus/log
	for side in request reply; do build-fuzz/native/fuzz_relay_$$side -max_total_time=$(FUZZ_RELAY_SECONDS) -max_len=2048 \
	  -print_final_stats=1 -verbosity=0 -artifact_prefix=build-fuzz/ build-fuzz/relay_$$side native/fuzz/corpus/relay_$$side || exit; done

# Kills and power cuts by the hundred, and an hour of one store in each mode: about three hours.
.PHONY: soak
soak:
	$(PYTHON) -m pytest tests/60_system/test_kills.py tests/60_system/test_power_cuts.py \
	  tests/60_system/test_soak.py tests/30_filesystem/test_sequences.py --soak
