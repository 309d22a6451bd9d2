//! Tables, columns, relationships and keys: the model from which metadata, validation and rendering all follow.
//!
//! `power-apps/developer/data-platform/entity-attribute-metadata`, `webapi/web-api-navigation-properties`.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Required {
    None,
    SystemRequired,
    ApplicationRequired,
    Recommended,
}

#[derive(Clone, Debug)]
pub struct Choice {
    pub value: i64,
    pub label: &'static str,
    /// For status reasons: the state they belong to.
    pub state: i64,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Text { max: usize, format: &'static str },
    Memo { max: usize },
    Integer { min: i64, max: i64 },
    BigInt,
    Decimal { min: f64, max: f64, precision: u32 },
    Double { min: f64, max: f64, precision: u32 },
    Money { min: f64, max: f64, precision: u32 },
    Boolean,
    Picklist(Vec<Choice>),
    MultiSelect(Vec<Choice>),
    State(Vec<Choice>),
    Status(Vec<Choice>),
    DateTime { date_only: bool },
    UniqueId,
    Lookup(Vec<&'static str>),
    Customer(Vec<&'static str>),
    Owner,
    EntityName,
    Virtual,
}

impl Kind {
    pub fn is_lookup(&self) -> bool {
        matches!(self, Self::Lookup(_) | Self::Customer(_) | Self::Owner)
    }

    /// (`AttributeTypeName`, `AttributeType`, name of the metadata type).
    pub fn names(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Text { .. } => ("StringType", "String", "StringAttributeMetadata"),
            Self::Memo { .. } => ("MemoType", "Memo", "MemoAttributeMetadata"),
            Self::Integer { .. } => ("IntegerType", "Integer", "IntegerAttributeMetadata"),
            Self::BigInt => ("BigIntType", "BigInt", "BigIntAttributeMetadata"),
            Self::Decimal { .. } => ("DecimalType", "Decimal", "DecimalAttributeMetadata"),
            Self::Double { .. } => ("DoubleType", "Double", "DoubleAttributeMetadata"),
            Self::Money { .. } => ("MoneyType", "Money", "MoneyAttributeMetadata"),
            Self::Boolean => ("BooleanType", "Boolean", "BooleanAttributeMetadata"),
            Self::Picklist(_) => ("PicklistType", "Picklist", "PicklistAttributeMetadata"),
            Self::MultiSelect(_) => {
                ("MultiSelectPicklistType", "Virtual", "MultiSelectPicklistAttributeMetadata")
            }
            Self::State(_) => ("StateType", "State", "StateAttributeMetadata"),
            Self::Status(_) => ("StatusType", "Status", "StatusAttributeMetadata"),
            Self::DateTime { .. } => ("DateTimeType", "DateTime", "DateTimeAttributeMetadata"),
            Self::UniqueId => {
                ("UniqueidentifierType", "Uniqueidentifier", "UniqueIdentifierAttributeMetadata")
            }
            Self::Lookup(_) => ("LookupType", "Lookup", "LookupAttributeMetadata"),
            Self::Customer(_) => ("CustomerType", "Customer", "LookupAttributeMetadata"),
            Self::Owner => ("OwnerType", "Owner", "LookupAttributeMetadata"),
            Self::EntityName => ("EntityNameType", "EntityName", "EntityNameAttributeMetadata"),
            Self::Virtual => ("VirtualType", "Virtual", "AttributeMetadata"),
        }
    }

    pub fn choices(&self) -> &[Choice] {
        match self {
            Self::Picklist(all) | Self::MultiSelect(all) | Self::State(all) | Self::Status(all) => all,
            _ => &[],
        }
    }
}

#[derive(Clone, Debug)]
pub struct Column {
    pub logical: String,
    pub schema: String,
    pub label: String,
    pub kind: Kind,
    pub create: bool,
    pub update: bool,
    pub read: bool,
    pub required: Required,
    /// The column this one only describes, such as the name behind a lookup.
    pub attribute_of: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Relation {
    pub schema: String,
    pub column: String,
    pub target: &'static str,
    /// The single-valued navigation property of the referencing table: what `@odata.bind` takes.
    pub navigation: String,
    /// The collection on the other side.
    pub collection: String,
}

#[derive(Clone, Debug)]
pub struct Key {
    pub schema: &'static str,
    pub columns: Vec<&'static str>,
}

#[derive(Clone, Debug)]
pub struct Table {
    pub logical: &'static str,
    pub schema: &'static str,
    pub set: &'static str,
    pub id: &'static str,
    pub name: &'static str,
    pub label: &'static str,
    pub number: i64,
    pub is_activity: bool,
    pub optimistic: bool,
    pub user_owned: bool,
    pub columns: Vec<Column>,
    pub relations: Vec<Relation>,
    pub keys: Vec<Key>,
}

impl Table {
    pub fn is_custom(&self) -> bool {
        self.logical.starts_with("new_")
    }

    pub fn column(&self, logical: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.logical == logical)
    }

    /// The lookup column behind `_x_value`.
    pub fn lookup_value(&self, property: &str) -> Option<&Column> {
        let logical = property.strip_prefix('_')?.strip_suffix("_value")?;
        self.column(logical).filter(|column| column.kind.is_lookup())
    }

    pub fn navigation(&self, name: &str) -> Option<&Relation> {
        self.relations.iter().find(|relation| relation.navigation == name)
    }

    pub(super) fn new(
        logical: &'static str,
        schema: &'static str,
        set: &'static str,
        name: &'static str,
        number: i64,
    ) -> Self {
        let is_activity = matches!(logical, "task" | "phonecall");
        let id: &'static str = match logical {
            "account" => "accountid",
            "contact" => "contactid",
            "lead" => "leadid",
            "opportunity" => "opportunityid",
            "incident" => "incidentid",
            "annotation" => "annotationid",
            "systemuser" => "systemuserid",
            "businessunit" => "businessunitid",
            "new_promise" => "new_promiseid",
            _ => "activityid",
        };
        let mut table = Self {
            logical,
            schema,
            set,
            id,
            name,
            label: schema,
            number,
            is_activity,
            optimistic: true,
            user_owned: true,
            columns: Vec::new(),
            relations: Vec::new(),
            keys: Vec::new(),
        };
        table = table.with(id, Kind::UniqueId).required(Required::SystemRequired).rights(true, false);
        table.with("versionnumber", Kind::BigInt).rights(false, false)
    }

    /// A column; `schema` defaults to the logical name with a capital.
    pub(super) fn with(mut self, logical: &str, kind: Kind) -> Self {
        let mut schema = logical.to_owned();
        if !self.is_custom()
            && let Some(first) = schema.get_mut(..1)
        {
            first.make_ascii_uppercase();
        }
        let shadow = match &kind {
            Kind::Lookup(_) | Kind::Customer(_) | Kind::Owner => {
                Some(Kind::Text { max: 160, format: "Text" })
            }
            Kind::Picklist(_) | Kind::Boolean | Kind::State(_) | Kind::Status(_) | Kind::MultiSelect(_) => {
                Some(Kind::Virtual)
            }
            _ => None,
        };
        let polymorphic = matches!(kind, Kind::Customer(_) | Kind::Owner);
        self.columns.push(Column {
            logical: logical.to_owned(),
            label: schema.clone(),
            schema,
            kind,
            create: true,
            update: true,
            read: true,
            required: Required::None,
            attribute_of: None,
        });
        let mut shadows = Vec::new();
        if let Some(kind) = shadow {
            shadows.push((format!("{logical}name"), kind));
        }
        if polymorphic {
            shadows.push((format!("{logical}type"), Kind::EntityName));
        }
        for (name, kind) in shadows {
            let at = self.columns.len() - 1;
            self.columns.insert(
                at,
                Column {
                    label: name.clone(),
                    schema: name.clone(),
                    logical: name,
                    kind,
                    create: false,
                    update: false,
                    read: true,
                    required: Required::None,
                    attribute_of: Some(logical.to_owned()),
                },
            );
        }
        self
    }

    pub(super) fn text(self, logical: &str, max: usize) -> Self {
        let format = match logical {
            name if name.contains("email") => "Email",
            name if name.contains("url") => "Url",
            name if name.contains("phone") => "Phone",
            _ => "Text",
        };
        self.with(logical, Kind::Text { max, format })
    }

    pub(super) fn memo(self, logical: &str, max: usize) -> Self {
        self.with(logical, Kind::Memo { max })
    }

    pub(super) fn choice(self, logical: &str, choices: &[(i64, &'static str)]) -> Self {
        self.with(logical, Kind::Picklist(options(choices)))
    }

    /// A lookup to one table, with the navigation property named like the column or as given.
    pub(super) fn lookup(self, logical: &str, target: &'static str, navigation: &str) -> Self {
        self.with(logical, Kind::Lookup(vec![target])).relation(logical, target, navigation)
    }

    pub(super) fn relation(mut self, column: &str, target: &'static str, navigation: &str) -> Self {
        let mut target_schema = target.to_owned();
        if let Some(first) = target_schema.get_mut(..1).filter(|_| !target.starts_with("new_")) {
            first.make_ascii_uppercase();
        }
        let schema = match (column, self.logical) {
            ("regardingobjectid", "task") => format!("{target_schema}_Tasks"),
            ("regardingobjectid", _) => format!("{target_schema}_{}s", self.schema),
            ("objectid", _) => format!("{target_schema}_Annotation"),
            _ => format!("{target}_{}_{column}", self.set),
        };
        let collection = schema.clone();
        let (column, navigation) = (column.to_owned(), navigation.to_owned());
        self.relations.push(Relation { schema, column, target, navigation, collection });
        self
    }

    /// States with their reasons; the first reason of a state is its default.
    pub(super) fn states(self, states: &[(i64, &'static str)], reasons: &[(i64, &'static str, i64)]) -> Self {
        let reasons = reasons
            .iter()
            .map(|(value, label, state)| Choice { value: *value, label, state: *state })
            .collect();
        self.with("statecode", Kind::State(options(states)))
            .required(Required::SystemRequired)
            .with("statuscode", Kind::Status(reasons))
    }

    pub(super) fn key(mut self, schema: &'static str, columns: &[&'static str]) -> Self {
        self.keys.push(Key { schema, columns: columns.to_vec() });
        self
    }

    pub(super) fn last(mut self, change: impl FnOnce(&mut Column)) -> Self {
        if let Some(column) = self.columns.last_mut() {
            change(column);
        }
        self
    }

    pub(super) fn required(self, required: Required) -> Self {
        self.last(|column| column.required = required)
    }

    pub(super) fn rights(self, create: bool, update: bool) -> Self {
        self.last(|column| (column.create, column.update) = (create, update))
    }

    pub(super) fn schema_name(self, schema: &str) -> Self {
        self.last(|column| schema.clone_into(&mut column.schema))
    }

    /// What every table that users own has.
    pub(super) fn owned(self) -> Self {
        self.with("createdon", Kind::DateTime { date_only: false })
            .rights(false, false)
            .with("modifiedon", Kind::DateTime { date_only: false })
            .rights(false, false)
            .with("overriddencreatedon", Kind::DateTime { date_only: false })
            .rights(true, false)
            .lookup("createdby", "systemuser", "createdby")
            .rights(false, false)
            .lookup("modifiedby", "systemuser", "modifiedby")
            .rights(false, false)
            .with("ownerid", Kind::Owner)
            .required(Required::SystemRequired)
            .relation("ownerid", "systemuser", "ownerid")
            .lookup("owningbusinessunit", "businessunit", "owningbusinessunit")
            .rights(false, false)
            .with("importsequencenumber", Kind::Integer { min: -2_147_483_648, max: 2_147_483_647 })
            .rights(true, false)
    }
}

pub(super) fn options(choices: &[(i64, &'static str)]) -> Vec<Choice> {
    choices.iter().map(|(value, label)| Choice { value: *value, label, state: 0 }).collect()
}
