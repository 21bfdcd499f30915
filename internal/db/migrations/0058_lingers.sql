-- What may go on of a containment at targets that cannot end it: a JSON array of
-- sentences, in the certificate too.
alter table containment add column lingers text not null default '[]';

-- What a containment has ended is found by when it was.
create index lease_was_contained on lease (tenant_id, ended_at) where priority = 0 and ended_at is not null;
