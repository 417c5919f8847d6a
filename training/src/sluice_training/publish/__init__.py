"""Publishing: signs a version's device files and lays them out so that any static file server can hand them out."""
