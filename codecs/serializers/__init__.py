"""The serializers, one file each; the registry names them."""
