"""The study of captioners: one that is trained here, its captions, and what students gain from them."""
