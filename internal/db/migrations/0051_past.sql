-- What the values of one version are recognised by is taken away with it; without
-- this all that the organisation has is looked through, twice for each version.
create index secret_fingerprint_version on secret_fingerprint (tenant_id, secret_id, version);
