"""Pictures from folders to the device: listing, order, decoding, views, loaders."""
