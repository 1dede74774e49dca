"""torch: how closed forms run on its tensors and are differentiated."""
