// The C ABI's version: kernels/native.py refuses a library built from other sources.
extern "C" int slca_abi_version() { return 1; }
