#include "isa.h"

extern "C" int slca_isa();
extern "C" int slca_set_isa(int);

int main() {
  const int best = slca_isa();
  for (int isa = 0; isa <= best; ++isa)
    if (slca_set_isa(isa) != isa) return 1;
  return slca_set_isa(99) == best ? 0 : 2;
}
