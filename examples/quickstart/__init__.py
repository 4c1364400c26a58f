"""The quickstart: data, teachers, reinforcement, training, evaluation, report."""
