-- Services that keep their own wrapped data keys, and what they have said of the
-- older keys.

-- +goose Up
alter table domain_grant add column inventory text not null default 'BROKER'
	constraint domain_grant_inventory_known check (inventory in ('BROKER', 'SELF'));

create index domain_grant_self on domain_grant (domain_uid) where inventory = 'SELF';

-- One row per grant and key_epoch: nothing is left under any epoch below it.
create table self_inventory (
	domain_uid  text    not null,
	grant_uid   text    not null,
	key_epoch   integer not null,
	kind        text    not null,
	caller      text    not null,
	pass_id     text    not null,
	begin_time  integer not null,
	items       integer not null,
	given_up    integer not null,
	reason      text    not null,
	settle_time integer not null,
	constraint self_inventory_pk primary key (domain_uid, grant_uid, key_epoch),
	constraint self_inventory_grant foreign key (domain_uid, grant_uid) references domain_grant (domain_uid, grant_uid),
	constraint self_inventory_kind_known check (kind in ('ATTESTED', 'OVERRIDDEN'))
) strict, without rowid;
