"""Everything that changes a live model: installed explicitly, removable."""
