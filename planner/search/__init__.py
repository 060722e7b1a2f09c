"""From a priced model to the best placement: candidates, a solver, a choice."""
