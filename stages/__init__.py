"""The three stages as functions of typed inputs: teacher cache, student training, evaluation."""
