"""Reinforced shards that were published without their images, and the images, found and put together."""
