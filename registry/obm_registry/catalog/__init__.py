"""Who refers to what, in SQL: the only package that knows SQLAlchemy and Alembic."""
