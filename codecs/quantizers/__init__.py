"""The quantizers, one file each; the registry names them."""
