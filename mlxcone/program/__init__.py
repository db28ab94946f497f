"""One batch of cone programs: data, products, scaling, residuals."""
