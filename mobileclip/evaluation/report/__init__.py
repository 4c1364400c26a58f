"""Results as people read them: tables, plots, sheets of examples, and one page that holds them all."""
