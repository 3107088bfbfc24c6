"""The paper's tables, figures and theory, held against what is printed."""
