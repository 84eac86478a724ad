"""Synthetic studies with known lesions: chest radiographs and retinal OCT volumes."""
