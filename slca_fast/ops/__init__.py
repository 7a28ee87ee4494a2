"""Operations on tensors, one file each: public function, backends, autograd, registry entry."""
