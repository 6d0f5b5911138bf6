"""Attribution methods for models of knowledge graphs: the variants of those of the same name."""
