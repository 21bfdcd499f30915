-- Of two who disable a mount at once each knows whether it has been closed all the
-- time since it was, and the last one alone opens it again.
alter table vault_mount add column closing text not null default '';
alter table vault_mount add column closing_by text not null default '';
