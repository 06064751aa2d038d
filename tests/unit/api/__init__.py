"""The wire contract: api/*.proto and the stubs made from them."""
