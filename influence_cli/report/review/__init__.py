"""The page on which a person looks at rows and decides what becomes of each."""
