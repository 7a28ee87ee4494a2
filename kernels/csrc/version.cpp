#include "isa.h"

// The C ABI's version: raise it here and in kernels/native.py when an existing function's signature changes.
SLCA_API int slca_abi_version() { return 3; }
