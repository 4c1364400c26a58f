"""What one key holds: an image, its captions, and what teachers said of both, in every layout that is read."""
