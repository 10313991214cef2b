"""Thin bridges to other libraries; each module needs its library, and the core imports none of them."""
