"""The study of captioners: trains a captioner, writes captions, and measures the students' gain from the captions."""
