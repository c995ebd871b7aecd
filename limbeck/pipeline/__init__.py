"""The whole way: stages over one run folder, each resumable by hash."""
