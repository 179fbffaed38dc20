package template

import "time"

// document is the template as it is written; Load turns it into a Template,
// Schema describes it.
type document struct {
	Name      string            `yaml:"name" rebake:"required" jsonschema_description:"name of the image and of the fleet"`
	Version   string            `yaml:"version" jsonschema_description:"version of the image; a date serial where none is given"`
	Labels    map[string]string `yaml:"labels" jsonschema_description:"labels stored with the image"`
	Env       []string          `yaml:"env" jsonschema_description:"environment variables that expressions may read as env.NAME"`
	Variables Block             `yaml:"variables" jsonschema_description:"values that the command line can set"`
	Build     Block             `yaml:"build" rebake:"required" jsonschema_description:"where the image comes from: one or more builders by name"`
	Provision []Block           `yaml:"provision" jsonschema_description:"steps that change the inside of the guest, in order"`
	Test      []Block           `yaml:"test" jsonschema_description:"checks of the sealed image in a fresh boot"`
	Seal      sealBlock         `yaml:"seal" jsonschema_description:"how the image is sealed"`
	Tags      []string          `yaml:"tags" jsonschema_description:"tags that are moved to each new image"`
	Store     string            `yaml:"store" jsonschema_description:"where images are: a registry, as oci://HOST/PREFIX; the state directory where none is given"`
	Retention *retentionBlock   `yaml:"retention" jsonschema_description:"which images stay in the store: \"rebake images prune\" and \"rebake up --prune\" remove the others"`
	Sign      signBlock         `yaml:"sign" jsonschema_description:"who signs the image"`
	Fleet     *fleetBlock       `yaml:"fleet" jsonschema_description:"how instances of the image run and are replaced"`
}

type sealBlock struct {
	Skip      []string `yaml:"skip" jsonschema_description:"ids of sealing items not to apply"`
	Inventory string   `yaml:"inventory" jsonschema:"enum=files,enum=packages,enum=contents,enum=off" jsonschema_description:"what of the sealed guest is listed beside the image: files (the default: all), packages (all but files), contents (and reads every file) or off"`
}

// stepOptions stand in a step beside the keys of its kind.
type stepOptions struct {
	Name        string        `yaml:"name" jsonschema_description:"what the step is called in output"`
	Only        []string      `yaml:"only" jsonschema_description:"builds in which the step runs"`
	Except      []string      `yaml:"except" jsonschema_description:"builds in which the step does not run"`
	PauseBefore time.Duration `yaml:"pause_before" jsonschema_description:"wait before the step"`
	Timeout     time.Duration `yaml:"timeout" jsonschema_description:"longest time that one try of the step may take"`
	MaxRetries  int           `yaml:"max_retries" jsonschema_description:"how often a failed step is tried again"`
	Cache       *cacheBlock   `yaml:"cache" jsonschema_description:"for how long the step's result may be used again; false: never (a step of provision)"`
	Inputs      []string      `yaml:"inputs" jsonschema_description:"files, directories and globs besides its own that decide the step's result (a step of provision)"`
}

// cacheBlock is a step's cache: false, or its options.
type cacheBlock struct {
	Use     *bool          `yaml:"use" rebake:"shorthand" jsonschema_description:"false: run the step in every build"`
	MaxAge  *time.Duration `yaml:"max_age" jsonschema_description:"run the step again once its result is older (20h for shell, no limit for file)"`
	Refresh string         `yaml:"refresh" jsonschema_description:"command run in the guest before the step; run the step again if it prints something else"`
}

type fleetBlock struct {
	Name     string        `yaml:"name" jsonschema_description:"name of the fleet; that of the template where it is not given"`
	Size     int           `yaml:"size" jsonschema_description:"number of instances (1)"`
	UserData string        `yaml:"user_data" jsonschema_description:"cloud-init user data or a script, given to each instance"`
	Pool     Block         `yaml:"pool" rebake:"required" jsonschema_description:"what makes and removes instances"`
	Router   Block         `yaml:"router" jsonschema_description:"what sends traffic to them; none with strategy: refresh, whose group has its own load balancers"`
	Health   healthBlock   `yaml:"health" rebake:"required" jsonschema_description:"how an instance is judged: http or tcp"`
	Deploy   deployBlock   `yaml:"deploy" jsonschema_description:"how the fleet is replaced"`
	Require  *requireBlock `yaml:"require" jsonschema_description:"what an image must have to run in the fleet"`
	State    string        `yaml:"state" jsonschema_description:"where the fleet's journal and lock are, as s3://BUCKET/PREFIX; the state directory where none is given"`
}

type healthBlock struct {
	HTTP     *httpHealth   `yaml:"http" jsonschema_description:"healthy if a GET is answered"`
	TCP      *tcpHealth    `yaml:"tcp" jsonschema_description:"healthy if a connection is accepted"`
	Interval time.Duration `yaml:"interval" jsonschema_description:"time between checks (1s)"`
	Timeout  time.Duration `yaml:"timeout" jsonschema_description:"longest time of a check (3s)"`
	Rise     int           `yaml:"rise" jsonschema_description:"good checks in a row that make an instance healthy (2)"`
	Fall     int           `yaml:"fall" jsonschema_description:"bad checks in a row that make it unhealthy (3)"`
	Within   time.Duration `yaml:"within" jsonschema_description:"a new instance must be healthy this soon after its start (5m)"`
	Refuse   time.Duration `yaml:"refuse_after" jsonschema_description:"refuse a new instance that answers, but wrongly, for so long, before within is over; not done by default: a service may answer 503 while it warms up"`
	Commands []string      `yaml:"commands" jsonschema_description:"commands run over SSH in each new instance before it gets traffic; all must end with 0"`
}

type httpHealth struct {
	Port   int    `yaml:"port" rebake:"required" jsonschema_description:"port in the guest"`
	Path   string `yaml:"path" jsonschema_description:"path of the request (/)"`
	Status int    `yaml:"status" jsonschema_description:"status of a good answer (200)"`
}

type tcpHealth struct {
	Port int `yaml:"port" rebake:"required,shorthand" jsonschema_description:"port in the guest"`
}
