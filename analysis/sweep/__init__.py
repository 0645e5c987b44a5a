"""A sweep's study turned into tables, figures, judgements and a page; nothing is trained."""
