"""The study of learning efficiency: teachers, stored views, trainings, curves, report."""
