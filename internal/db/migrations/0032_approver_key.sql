-- The keys by which people sign what they approve. A row carries a MAC under a
-- key of the tenant that is not in the database, so that a key cannot be slipped
-- in, or given to somebody else, by writing to a table. A passkey of before has
-- none: it lets its person in and signs nothing.
alter table passkey add column public_key bytes; -- SubjectPublicKeyInfo
alter table passkey add column mac bytes;

create table approver_key (
	tenant_id text not null,
	id text not null,
	person_id text not null,
	label text not null,
	public_key bytes not null, -- the wire form of an ssh key
	verifies bigint not null check (verifies in (0, 1)), -- whether it must look who uses it
	created_at bigint not null,
	ended_at bigint,
	mac bytes not null,
	primary key (tenant_id, id),
	unique (tenant_id, public_key), -- for good: one person's, and only once
	foreign key (tenant_id, person_id) references person (tenant_id, id)
);

create index approver_key_person on approver_key (tenant_id, person_id) where ended_at is null;

-- The same of what was asked for, who voted, and how.
alter table access_request add column mac bytes;
alter table access_vote add column mac bytes;
