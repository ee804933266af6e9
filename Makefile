PYTHON ?= python3
MESON ?= $(PYTHON) -m mesonbuild.mesonmain

.PHONY: build-inplace native-test

# Makes agentfs.chunks._native importable from this tree.
build-inplace:
	test -f build/build.ninja || $(MESON) setup build --buildtype=release -Dwerror=true
	$(MESON) compile -C build
	install -m 755 build/native/_native.*.so agentfs/chunks/

# The C tests three times: with asserts of our own only, under ASan and UBSan, under TSan; then the fuzz
# target for FUZZ_SECONDS from its committed corpus.
FUZZ_SECONDS ?= 25
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
	$(MESON) compile -C build-fuzz fuzz_segment
	mkdir -p build-fuzz/corpus
	build-fuzz/native/fuzz_segment -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=1 -verbosity=0 \
	  -artifact_prefix=build-fuzz/ build-fuzz/corpus native/fuzz/corpus/segment
