"""What stands behind the section `[models]`: its types, quiet reading, hashing in slices, and learning a manifest."""
