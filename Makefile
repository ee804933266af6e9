PYTHON ?= python3
MESON ?= $(PYTHON) -m mesonbuild.mesonmain

.PHONY: build-inplace native-test

# Makes agentfs.chunks._native importable from this tree.
build-inplace:
	test -f build/build.ninja || $(MESON) setup build --buildtype=release -Dwerror=true
	$(MESON) compile -C build
	install -m 755 build/native/_native.*.so agentfs/chunks/
