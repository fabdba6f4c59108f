"""The tiny profile's toy: problems of parts, the corpus and the seed model that reads it."""
