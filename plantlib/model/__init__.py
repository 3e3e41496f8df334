"""PlantModel: prediction, explanation, saving and loading."""
