"""DialectBook: the helper package behind the notebooks. Flat modules, one job each; `import dialectbook` is instant."""

__version__ = "0.1.0"
