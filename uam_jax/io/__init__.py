"""Pictures, masks and folders: read, composed and written, without a model."""
