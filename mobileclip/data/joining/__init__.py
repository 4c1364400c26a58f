"""Reinforced shards that were published without their images, and the images, found and put together.

What finds, checks and matches the two belongs here; reading the outcome is for `data.loading`.
"""
