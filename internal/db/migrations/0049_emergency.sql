-- What is to be done in an emergency may be a group: all leases at a target, all
-- certificates of an authority, all tokens of the Vault-compatible door. Its row
-- counts them, since a row for each of a thousand would say no more.
create table emergency_rotation_item_next (
	tenant_id text not null,
	emergency_id text not null,
	n bigint not null,
	kind text not null check (kind in ('containment', 'leases', 'certificates', 'ssh_certificates', 'tokens', 'secret_ids', 'secret')),
	ref text not null, -- agent:…, resource:…, target:…, authority:…, or the path of a secret
	secret_id text not null default '',
	version bigint not null default 0, -- the newest that was seen
	why text not null default '', -- who had it
	state text not null check (state in ('pending', 'by_hand', 'failed', 'done')),
	note text not null default '',
	tries bigint not null default 0,
	begun_at bigint,
	done_at bigint,
	members bigint not null default 0, -- how many things a group is of
	standing bigint not null default 0, -- of them, how many are not gone
	overdue bigint not null default 0, -- and should be
	oldest_at bigint, -- since when the first of these should be
	primary key (tenant_id, emergency_id, n),
	foreign key (tenant_id, emergency_id) references emergency_rotation (tenant_id, id)
);

insert into emergency_rotation_item_next (tenant_id, emergency_id, n, kind, ref, secret_id, version, why, state, note, tries, begun_at, done_at)
	select tenant_id, emergency_id, n, kind, ref, secret_id, version, why, state, note, tries, begun_at, done_at from emergency_rotation_item;

drop table emergency_rotation_item;

alter table emergency_rotation_item_next rename to emergency_rotation_item;
