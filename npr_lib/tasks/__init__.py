"""Problems and how their answers are verified; `parts` is the tiny profile's own task family."""
