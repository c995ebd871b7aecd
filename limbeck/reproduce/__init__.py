"""Small reproductions of the papers' comparisons, on data that they make or that the user names.

`catalog` says what each one claims and where its experiment is; `outcome` holds what was measured and the verdict.
"""
