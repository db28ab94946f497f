"""One cone a file; `product` knows offsets and groups equal cones."""
