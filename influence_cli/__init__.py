"""Find the training rows that hurt a model, fix them, and show whether it helped.

    manifest --(grads)--> store --(score)--> scores --(curate)--> edits + curated manifest --(retrain)--> comparison

Each arrow is a module: ``grads`` runs the model on the rows that the store has not seen, ``score`` turns what is
stored into one number a row (positive: the row helps), ``curate`` edits rows under a budget, ``retrain`` trains with
and without the edits and with random edits of the same size.  Importing this package imports no torch.
"""
