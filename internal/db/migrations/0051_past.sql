-- What the values of one version are recognised by is taken away with it; without
-- this all that the organisation has is looked through, twice for each version.
create index secret_fingerprint_version on secret_fingerprint (tenant_id, secret_id, version);

-- Digests of the versions of a secret but the current one, which is under the
-- row's MAC; null in a row that was last written before, whose MAC is over all
-- versions.
alter table secret add column past bytes;
